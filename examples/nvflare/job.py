"""An NVFlare job whose clients measure what they give away, and whose server records it.

pip install 'gifd[nvflare]', then run it in its folder; docs/nvflare.md says how to invert what it
records.
"""

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from gifd.integrations.nvflare import LeakageFilter, Recorded

if __name__ == "__main__":
    network = {"class_path": "gifd.ConvNet", "args": {"classes": 10}}
    recipe = FedAvgRecipe(model=network, min_clients=2, num_rounds=2, train_script="train.py")
    recipe.add_client_file("measured.py")
    leakage = LeakageFilter("measured:measure", "measured:batch")
    recipe.add_client_output_filter(leakage, tasks=["train"])
    recipe.add_server_input_filter(Recorded("updates"), tasks=["train"])
    recipe.execute(SimEnv(num_clients=2, workspace_root="runs"))
