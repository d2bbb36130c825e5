"""Weight maps from and to other projects' nGPT."""
