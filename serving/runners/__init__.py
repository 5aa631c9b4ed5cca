"""What computes blocks: one runner per runtime, the devices they run on, and their timing."""
