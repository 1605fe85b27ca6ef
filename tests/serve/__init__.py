"""A package, so that the server of its tests ends with them and not with all tests."""
