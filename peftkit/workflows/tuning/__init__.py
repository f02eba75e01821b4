"""A search for better hyperparameters: trials in processes of their own, drawn, judged and ended early."""
