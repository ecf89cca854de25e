"""A recipe on several hosts, on Ray: `zero2r1 run RECIPE --cluster auto`.

The runner stays where it is. It asks Ray for a placement group a stage (`slots`), with an agent on each of its hosts.
An agent is an actor that starts our own process there (`agent`), the same that runs on one host; ranks meet through
torch's rendezvous. The runner hears of them again and again (`attempt`). Before anything starts, hosts are compared
with this one (`hosts`). Ray is imported inside of functions: nothing here costs a run without a cluster anything.
"""
