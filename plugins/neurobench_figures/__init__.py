"""Built-in figures of neurobench; each file is one plugin, loaded through its entry point."""
