"""Many runs of one recipe: compared, searched over, reproduced, and the quickstart."""
