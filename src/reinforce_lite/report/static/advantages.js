// What came of a group's rewards: a line in words, and on opening it the formula with the group's numbers.

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const same = (values) => values.every((value) => value === values[0]);
function deviation(values) {
  const m = mean(values);
  return same(values) ? 0 : Math.sqrt(values.reduce((sum, value) => sum + (value - m) ** 2, 0) / (values.length - 1));
}

// What a completion's advantage came from, in lines: clip((reward - baseline) / scale), as learner/objective.py has it.
// Null where this does not give the recorded advantage: the log lost a line of the group, or another version wrote it.
function originOf(c, { step, completions: group }) {
  if (!current.objective || c.advantage === null) return null;
  const { baseline, scale, clip, epsilon, refill, warm_start: warmSteps } = current.objective;
  if (step <= warmSteps) return [c.advantage ? "warm start: 1 for each right completion"
    : c.strict ? "warm start: not counted, since it repeats a completion of its group" : "warm start: 0 for all other completions"];
  const rewards = group.map((other) => other.reward);
  const zero = c.fault ? "not counted: its reward failed"
    : (baseline !== "none" || scale !== "none") && same(rewards) ? "no signal, as all rewards of the group are equal"
    : refill && same(group.filter((other) => !other.fault).map((other) => other.reward))
      ? "not counted, as with rollout.refill a group needs rewards that differ" : null;
  if (zero) return c.advantage === 0 ? [zero] : null;
  const peers = { group: ["group’s", rewards],
    "leave-one-out": ["others’", group.filter((other) => other !== c).map((other) => other.reward)] };
  const lines = [];
  let value = c.reward, error = 1e-4 * Math.max(...rewards.map(Math.abs)); // the page's rewards have five digits
  if (baseline === "none") lines.push(["no baseline: reward", value]);
  else {
    const [whose, compared] = peers[baseline];
    lines.push([`reward ${number(value)} − ${whose} mean ${number(mean(compared))}`, value -= mean(compared)]);
  }
  if (scale !== "none") {
    const [whose, compared] = peers[scale], s = deviation(compared);
    error /= s + epsilon;
    lines.push([`÷ ${whose} deviation ${number(s)}${s ? "" : ` (+ ${epsilon}, to avoid division by 0)`}`, value /= s + epsilon]);
  }
  if (clip !== null && Math.abs(value) > clip) {
    error = 0;
    lines.push([`clipped to ±${clip}`, value = Math.sign(value) * clip]);
  }
  if (!(Math.abs(value - c.advantage) <= error + 1e-4 * Math.abs(value))) return null;
  lines.at(-1)[1] = c.advantage;
  return lines.map(([text, result]) => `${text} =\u00a0${number(result)}`);
}

const PEERS = { group: "the group", "leave-one-out": "the others" };

function formula({ baseline, scale, clip, epsilon }) {
  const centred = baseline === "none" ? "reward" : `reward − mean of ${PEERS[baseline]}`;
  const divided = scale === "none" ? centred : `${baseline === "none" ? centred : `(${centred})`} ÷ (standard deviation of ${PEERS[scale]} + ${epsilon})`;
  return `advantage = ${divided}${clip === null ? "" : `, clipped to ±${clip}`}`;
}

// The completions of a group that share a reward, an advantage and its origin; the highest advantage first.
function outcomesOf(group) {
  const outcomes = new Map();
  for (const c of group.completions) {
    const lines = originOf(c, group), key = JSON.stringify([c.reward, c.advantage, lines]);
    if (!outcomes.has(key)) outcomes.set(key, { reward: c.reward, advantage: c.advantage, lines, completions: [] });
    outcomes.get(key).completions.push(c);
  }
  return [...outcomes.values()].sort((a, b) => b.advantage - a.advantage);
}

function inWords(group, outcomes) {
  const counted = outcomes.filter((o) => !o.completions[0].fault), [best, rest] = counted;
  const n = group.completions.length, right = group.completions.filter((c) => c.strict).length;
  const failed = group.completions.filter((c) => c.fault).length;
  const value = (o) => signed(o.advantage) + (o.completions.length > 1 ? " each" : "") + (o.lines?.at(-1).startsWith("clipped") ? ", clipped" : "");
  const all = (o, verdict) => o.completions.every((c) => c.strict === verdict);
  let words = null;
  if (!counted.length || group.completions.some((c) => c.advantage === null)) words = null;
  else if (group.step <= current.objective?.warm_start) words = `warm start, ${counted.reduce((sum, o) => sum + o.advantage * o.completions.length, 0)} learned from`;
  else if (counted.every((o) => o.advantage === 0 && o.lines?.[0] === best.lines?.[0]) && best.lines) words = best.lines[0];
  else if (counted.length === 1) words = `advantage ${value(best)}`;
  else if (counted.length === 2 && all(best, true) && all(rest, false)) words = `advantage ${value(best)}; the other${rest.completions.length > 1 ? "s" : ""} ${value(rest).replace(" each", "")}`;
  else {
    const rewards = counted.map((o) => o.reward);
    words = `rewards ${number(Math.min(...rewards))} to ${number(Math.max(...rewards))}, advantages ${signed(counted.at(-1).advantage)} to ${signed(best.advantage)}`;
  }
  return `${right} of ${n} right${words ? `: ${words}` : ""}${failed ? `; ${failed} not counted, as the reward failed` : ""}`;
}

function advantagesOf(group) {
  const outcomes = outcomesOf(group), told = outcomes.filter((o) => o.lines), words = inWords(group, outcomes);
  if (!told.length) return el("p", { class: "advantages" }, words);
  const computed = told.some((o) => o.advantage) && group.step > current.objective.warm_start;
  return el("details", { class: "advantages" }, el("summary", {}, words),
    computed ? el("p", {}, formula(current.objective)) : "",
    el("dl", {}, ...told.flatMap((o) => [
      el("dt", {}, `reward ${number(o.reward)} (${count(o.completions.length, "completion")})`),
      el("dd", { class: "origin" }, o.lines.join("\n"))])));
}
