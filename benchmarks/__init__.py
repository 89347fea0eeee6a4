"""Time and memory of the losses beside the products they consist of and beside other implementations."""
