// What temperature, top-k and top-p make of the next token's distribution: what the service itself does.

// Returns the probability of every candidate sent, how many tokens can be drawn (null: more than were sent),
// and, where that is known, the share of the model's own probability those hold.
export function shape(next, temperature, topK, topP) {
  const logits = next.candidates.map((candidate) => candidate.logit);
  const kept = temperature === 0 || topK === 1 ? 1 : countKept(next, logits, temperature, topK, topP);
  const own = next.candidates.map((candidate) => candidate.probability);
  if (kept === null) {
    const { weights, rest } = weigh(next, logits, temperature);
    // Top-p keeps its share of all, or a part of one token more.
    const total = topP * (sum(weights) + rest);
    return { probabilities: weights.map((weight) => weight / total), kept: null };
  }
  const weights = temperature === 0 ? [1] : weigh(next, logits.slice(0, kept), temperature).weights;
  const total = sum(weights);
  const probabilities = logits.map((_, index) => (index < kept ? weights[index] / total : 0));
  return { probabilities, kept, share: sum(own.slice(0, kept)) };
}

function countKept(next, logits, temperature, topK, topP) {
  const { weights, rest } = weigh(next, logits, temperature);
  const isCut = topK !== null && topK <= weights.length;
  const within = isCut ? weights.slice(0, topK) : weights;
  if (topP >= 1) return isCut || next.rest.count === 0 ? within.length : null;
  const needed = topP * (sum(within) + (isCut ? 0 : rest));
  let before = 0;
  for (let index = 0; index < within.length; index++) {
    if (before >= needed) return index;
    before += within[index];
  }
  return isCut || before >= needed ? within.length : null;
}

function weigh(next, logits, temperature) {
  const peak = next.candidates[0].logit / temperature;
  const place = next.temperatures.findIndex((sent) => Math.abs(sent - temperature) < 1e-9);
  const restTotal = next.rest.logsumexp[place];
  const rest = restTotal === null ? 0 : Math.exp(restTotal - peak);
  return { weights: logits.map((logit) => Math.exp(logit / temperature - peak)), rest };
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}
