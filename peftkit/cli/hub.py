"""`peftkit fetch` and `peftkit push`: from the hub and to it."""

from __future__ import annotations

from dataclasses import asdict

import click

from peftkit import console
from peftkit.cli import options
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe

__all__ = ["fetch", "push"]

_DIGITS = 12  # of a commit, enough to tell two apart


@click.command("fetch")
@click.argument("recipe")
@options.method
@options.overrides
@options.as_json
def fetch(recipe: str, method: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Download what RECIPE needs of the hub, so that it trains without a network.

    Brings the base (configuration, tokenizer and safetensors, never other weights) and the files of the named
    configurations and splits of the data sets, at the recipe's revisions, into the hub's cache. Says what is there
    already and what needs no fetching. It can be given again: whole files stay. What cannot be had is listed, with
    status 2; with HF_HUB_OFFLINE=1, that is what is not on this machine.

    \b
    Examples:
      peftkit fetch my.yaml
      HF_HUB_OFFLINE=1 peftkit train my.yaml
    """
    file = load_recipe(find_recipe(recipe), method=method, overrides=overrides)

    from peftkit.fetch import fetch as fetch_all
    from peftkit.hub import cache_place

    items, fault = fetch_all(file)
    if as_json:
        console.print_json({"items": [asdict(item) for item in items]})
    else:
        rows = []
        for item in items:
            size = "" if item.bytes is None else console.size(item.bytes)
            brought = console.size(item.fetched_bytes) if item.origin == "hub" else "not needed"
            commit = (item.commit or "")[:_DIGITS]
            rows.append([item.field, item.name, commit, size, "missing" if item.missing else brought])
        console.print_table(None, ["field", "name", "commit", "size", "fetched"], rows)
        console.info(f"what is fetched is in {cache_place()}")
    if fault:
        raise fault


@click.command("push")
@click.argument("target")
@click.argument("repo")
@click.option("--public", is_flag=True, help="Let everybody see it; a new repository is private otherwise.")
@click.option("--with-sample", is_flag=True, help="Take sample.json along: some of the run's own validation text.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and send nothing.")
@options.as_json
def push(target: str, repo: str, public: bool, with_sample: bool, dry_run: bool, as_json: bool) -> None:
    """Upload TARGET, a run, an adapter or a merged model, to the hub's repository REPO, as user/name.

    It goes with a card that states base, data, hyperparameters, metrics and the merge's receipt, and without the names
    of folders on this machine. The token comes from the environment, HF_TOKEN, and from nowhere else.

    \b
    Examples:
      peftkit push runs/first me/first --dry-run
      peftkit push my-model me/my-model
    """
    from peftkit.adapters.push import push as upload

    pushed = upload(target, repo, public=public, with_sample=with_sample, dry_run=dry_run)
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
