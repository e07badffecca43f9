"""Division of what is scarce among clients: threads, places of the queue, bytes and pixels in memory.

A `Budget` divides an amount; a `FairPool` divides the threads that work on requests. Both serve addresses in turn, and
the API keys of an address in turn, so that one client's requests delay those of others by one turn, however many it
sends.
"""
