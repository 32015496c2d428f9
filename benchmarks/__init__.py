"""Side by side on one machine: streamproc, plain Faust, and loops written by hand."""
