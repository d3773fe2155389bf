"""Random faults under traffic: nothing in clear, and it always comes back.

    python -m tests.chaos --events 200 --seed 7

tests.chaos.world: the lab, the traffic and what is judged. tests.chaos.events:
what can happen. The same seed gives the same events in the same order, not the
same packets: processes and timers are real.
"""
