"""Pure: the JSON shapes of the admin API and how they follow from the coordinator's messages."""
