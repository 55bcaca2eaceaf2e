"""The scripted engine."""

from helpers.tiny import END, make_tokenizer
from reinforce_lite.engines.scripted import ScriptedEngine
from reinforce_lite.types import Prompt, Sampling


def test_scripted_engine_replies_and_truncates() -> None:
    engine = ScriptedEngine(make_tokenizer(), END, lambda prompt, sample: f"{prompt[-1]}{sample}")
    prompt = Prompt(tuple(make_tokenizer()("abc")["input_ids"]))
    ((first, second),) = engine.generate([prompt], Sampling(2, max_new_tokens=3), seed=0)
    assert (first.text, second.text) == ("c0", "c1")
    assert first.token_ids[-1] == END
    assert not first.truncated
    ((truncated,),) = engine.generate([prompt], Sampling(1, max_new_tokens=2), seed=0)
    assert (truncated.text, truncated.truncated, len(truncated.logprobs)) == ("c0", True, 2)


def test_scripted_engine_records_calls() -> None:
    engine = ScriptedEngine(make_tokenizer(), END, lambda prompt, sample: "7")
    sampling = Sampling(1, max_new_tokens=3)
    engine.generate([Prompt((5,))], sampling, seed=4)
    assert engine.calls == [([Prompt((5,))], sampling, 4)]
