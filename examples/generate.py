"""Text generation with a key-value cache. Needs: pip install 'dynattn[evals,models]'

Groups lie on the cache's axis, so decoding step by step keeps what one pass over the whole text keeps: the logits
agree. The 64 nearest and the first 4 keys are always kept, which takes away most of what N:M costs a decoder.
"""

import torch

import dynattn.integrations.transformers
from dynattn.lab.models import load

pretrained = load("smollm2")
model, tokenizer = pretrained.model, pretrained.processor
dynattn.integrations.transformers.register()

chat = [{"role": "user", "content": "Name three rivers in Europe."}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
length = prompt["input_ids"].shape[1]

for attention in ("sdpa", "dynattn:nm-1-2-w64-s4", "dynattn:nm-2-4"):
    model.set_attn_implementation(attention)
    tokens = model.generate(**prompt, max_new_tokens=32, do_sample=False)
    print(f"{attention}: {tokenizer.decode(tokens[0, length:], skip_special_tokens=True)!r}")

with torch.no_grad():
    whole = model(tokens).logits
    first = model(tokens[:, :length], use_cache=True)
    rest = [first.logits]
    for i in range(length, tokens.shape[1]):
        rest.append(model(tokens[:, i : i + 1], past_key_values=first.past_key_values, use_cache=True).logits)
print(f"step by step against one pass: {(torch.cat(rest, 1) - whole).abs().max():.1e} of {whole.abs().max():.1f}")
