"""The chat template of a merged model, as transformers reads it from what was written."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from evomerge.candidate.merge import merge
from evomerge.document import Place
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe

ONE, OTHER = (f"{{% for m in messages %}}{mark}{{{{ m['content'] }}}}{{% endfor %}}" for mark in "<#")


@pytest.fixture
def models(family, tmp_path):
    """base without a template, math and code with one, each kept in another file."""
    shutil.copytree(family, tmp_path / "models")
    (tmp_path / "models/math/chat_template.jinja").write_text(f"{ONE}\n")
    config = tmp_path / "models/code/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": OTHER}))
    return tmp_path / "models"


def template(models, chat_template, base="base"):
    data = {
        "base": base,
        "sources": {"math": "math", "code": "code"},
        "rules": [{"match": "*", "method": "linear", "weight": 0.5}],
    }
    recipe = Recipe.from_data(data | {"chat_template": chat_template}, Place("test"), models)
    again = Recipe.from_data(recipe.to_data(), Place("again"))
    assert again == recipe
    return AutoTokenizer.from_pretrained(merge(recipe, models / f"out-{len(list(models.iterdir()))}")).chat_template


def test_the_commonest_of_all_models_is_taken(models):
    (models / "base/chat_template.jinja").write_text(f"  {OTHER}")

    assert template(models, "auto") == OTHER


def test_where_none_has_one_there_is_none(models):
    (models / "math/chat_template.jinja").unlink()
    shutil.copy(models / "base/tokenizer_config.json", models / "code/tokenizer_config.json")

    assert template(models, "auto") is None


def test_one_that_is_given_takes_the_place_of_the_base_s(models):
    given = ONE.replace("<", ">")

    assert template(models, given, base="code") == given
    assert template(models, None, base="code") == OTHER


def test_what_is_no_template_is_refused(models):
    with pytest.raises(RecipeError, match=r"chat_template: 'alpaca' is no template; write its Jinja, or auto"):
        template(models, "alpaca")
