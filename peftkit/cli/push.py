"""`peftkit push`: an adapter or a model to the hub."""

from __future__ import annotations

from dataclasses import asdict

import click

from peftkit import console
from peftkit.cli import options

__all__ = ["command"]


@click.command("push")
@click.argument("target")
@click.argument("repo")
@click.option("--public", is_flag=True, help="Let everybody see it; a new repository is private otherwise.")
@click.option("--with-sample", is_flag=True, help="Take sample.json along: some of the run's own validation text.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and send nothing.")
@options.as_json
def command(target: str, repo: str, public: bool, with_sample: bool, dry_run: bool, as_json: bool) -> None:
    """Upload TARGET, a run, an adapter or a merged model, to the hub's repository REPO, as user/name.

    It goes with a card that states base, data, hyperparameters, metrics and the merge's receipt, and without the names
    of folders on this machine. The token comes from the environment, HF_TOKEN, and from nowhere else.

    \b
    Examples:
      peftkit push runs/first me/first --dry-run
      peftkit push my-model me/my-model
    """
    from peftkit.adapters.push import push

    pushed = push(target, repo, public=public, with_sample=with_sample, dry_run=dry_run)
    if as_json:
        console.print_json(asdict(pushed))
        return
    rows = [[name, console.size(size)] for name, size in pushed.files.items()]
    console.print_table(None, ["file", "size"], rows)
    if pushed.left_out:
        console.info(f"stays here: {', '.join(pushed.left_out)}")
    if pushed.url is None:
        console.print_text(f"\n{pushed.card}")
        console.info(f"nothing was sent; {repo} would be {'private' if pushed.private else 'public'}.")
    else:
        console.print_text(f"\n{pushed.url}")
