"""Tables of a worker: Faust's for now."""
