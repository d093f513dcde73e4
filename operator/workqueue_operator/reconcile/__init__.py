"""The pass over one WorkQueue, and the queue of passes."""
