"""What the Makefile and CI run; not part of the package."""
