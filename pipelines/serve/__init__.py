"""Search and question answering as an HTTP API and a web page, on Ray Serve."""
