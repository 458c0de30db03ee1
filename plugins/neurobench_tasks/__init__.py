"""Built-in tasks of neurobench; each file is one plugin, loaded through its entry point."""
