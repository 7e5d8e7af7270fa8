"""The client, as it is written: asynchronous. `flotta._sync` is generated from here; edit this one."""
