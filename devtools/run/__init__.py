"""`dev.py run`: videos from the command line, on a ComfyUI that runs already or on one of its own.

options.py, requests.py: what a person asks for. recommended.py: which settings a model gets. targets.py:
where the results go, and which of them are there already. remote.py: the server over HTTP. plan.py: all of it read and
checked, before anything is installed: these files need no package.

media.py: pictures and videos of the person's own. clips.py: a request settled. graph.py: a clip as a workflow.
local_models.py: the models of a server of one's own. work.py: the run itself.
"""
