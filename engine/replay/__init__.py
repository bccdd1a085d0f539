"""What is in flight and what is ready: the replay buffer, and the ledger of every trajectory's life."""
