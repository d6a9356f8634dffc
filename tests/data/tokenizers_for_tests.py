"""Small tokenizers, made on the spot."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["Question: who lives here?\nAnswer: the old baker lives here", "the baker and the cook", "1 2 3 4 5"]
MARKS = [
    "<pad>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin|>",
    "<|head|>",
    "<|/head|>",
]
MARKS += ["<|eot|>", "<turn>", "</turn>"]


def byte_level(*, bos: bool = True, eos: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 and Llama-3 have it; with `bos` it puts <s> in front by itself."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return _finished(core, bos=bos, eos=eos, pad=pad)


def merging() -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE without words: a token may reach over the boundary of prompt and answer."""
    core = Tokenizer(models.BPE(byte_fallback=False, unk_token="<pad>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=MARKS, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return _finished(core, bos=True, eos=True, pad=True)


def _finished(core: Tokenizer, *, bos: bool, eos: bool, pad: bool) -> PreTrainedTokenizerFast:
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        pad_token="<pad>" if pad else None,
    )
