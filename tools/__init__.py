"""One file, one verb: each parses options, calls the engine and prints."""
