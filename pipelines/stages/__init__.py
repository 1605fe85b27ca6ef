"""The pipeline from top to bottom, a file per stage; they import nothing heavy."""
