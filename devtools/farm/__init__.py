"""`dev.py farm`: the clips of a file of prompts and workflows, on every card of this machine or of a Ray cluster.

farm_plan.py: what is asked for, checked before anything long; it needs no package. farm_results.py: where results go,
and which of them are there already. farm_work.py: the farm itself; farm_queue.py: which clip is next, and which was
tried often enough; farm_hand.py: one Ray actor as the farm sees it.

On each card's machine: farm_actor.py, the class of the actors; farm_server.py, the ComfyUI that an actor supervises.

Ray is imported by farm_work.py alone.
"""
