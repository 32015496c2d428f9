"""Pages of a worker: tables of the whole group, and requests that go to the owner of a key."""
