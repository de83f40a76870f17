"""One clip on several cards: each has a process with all of the model's weights and a part of the tokens.

The graph's process keeps the sampler, the prompts and ComfyUI's MODEL socket (remote_model.py); its transformer has no
weights and asks a Team (team.py) of Ray actors for each prediction. In each actor a Rank (rank.py) runs the pack's own
transformer on its part of the tokens; TokenRanks (token_ranks.py) exchanges heads for tokens around each attention.

Beside the MODEL goes a VAE (remote_vae.py): each rank has its weights (rank_vae.py) and some rows of every frame;
RowRanks (row_ranks.py) exchanges a row with each neighbour before a convolution, and the moments before a norm.

Actors start in actors.py, where places.py puts them, in the Ray that engine.py starts or joining.py joins.

Ray and torch.distributed are imported by the functions that need them.
"""
