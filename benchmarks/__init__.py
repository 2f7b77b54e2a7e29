"""Speed, as ratios against a peer or a floor in the same run; each file is one command."""
