// What changed from one text to another, for highlighting: first by lines, then, in changed lines, by words and digits.

// A word, or one character: a digit, a sign, an ideograph, an emoji with all that belongs to it. Digits are compared one
// by one, so that a wrong digit in a long number is seen; scripts without spaces too.
const WORDS = new RegExp(
  "\\p{Extended_Pictographic}(?:\\u200d\\p{Extended_Pictographic}|\\ufe0f|\\p{Emoji_Modifier})*" +
    "|[\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Thai}\\p{Script=Lao}\\p{Script=Khmer}]\\p{M}*" +
    "|\\p{L}[\\p{L}\\p{M}]*(?:['\\u2019]\\p{L}[\\p{L}\\p{M}]*)*" +
    "|[^\\S\\n]+" +
    "|[^]\\p{M}*",
  "gu",
);
const LINES = /[^\n]*\n|[^\n]+/g;
const MOST_EDITS = 500; // beyond it, a stretch is shown as replaced as a whole: time and memory grow with its square

// [["=", text] | ["-", removed] | ["+", added], ...]: "=" and "-" in order are the old text, "=" and "+" the new one.
function changes(oldText, newText) {
  return joined(withoutIslands(joined(compare(oldText, newText, [LINES, WORDS]))));
}

function compare(oldText, newText, [pieces, ...finer]) {
  const result = [];
  let removed = "";
  let added = "";
  const flush = () => {
    if (removed && added && finer.length) result.push(...compare(removed, added, finer));
    else result.push(["-", removed], ["+", added]);
    removed = added = "";
  };
  for (const [kind, text] of shortestEdits(oldText.match(pieces) ?? [], newText.match(pieces) ?? [])) {
    if (kind === "-") removed += text;
    else if (kind === "+") added += text;
    else {
      flush();
      result.push(["=", text]);
    }
  }
  flush();
  return result;
}

// Myers' greedy algorithm (An O(ND) difference algorithm, 1986), on what lies between the common ends.
function shortestEdits(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let aEnd = a.length;
  let bEnd = b.length;
  while (aEnd > start && bEnd > start && a[aEnd - 1] === b[bEnd - 1]) aEnd--, bEnd--;
  const middle = myers(a.slice(start, aEnd), b.slice(start, bEnd));
  return [["=", a.slice(0, start).join("")], ...middle, ["=", a.slice(aEnd).join("")]];
}

function myers(a, b) {
  const replaced = [["-", a.join("")], ["+", b.join("")]];
  if (!a.length || !b.length) return replaced;
  const most = Math.min(a.length + b.length, MOST_EDITS);
  const trace = []; // by number of edits: how far along `a` each diagonal gets
  let reach = new Map([[1, 0]]);
  for (let edits = 0; edits <= most; edits++) {
    trace.push(reach);
    const next = new Map();
    for (let diagonal = -edits; diagonal <= edits; diagonal += 2) {
      const down = diagonal === -edits || (diagonal !== edits && reach.get(diagonal - 1) < reach.get(diagonal + 1));
      let x = down ? reach.get(diagonal + 1) : reach.get(diagonal - 1) + 1;
      while (x < a.length && x - diagonal < b.length && a[x] === b[x - diagonal]) x++;
      next.set(diagonal, x);
      if (x >= a.length && x - diagonal >= b.length) return backwards(a, b, trace, edits);
    }
    reach = next;
  }
  return replaced;
}

function backwards(a, b, trace, edits) {
  const result = [];
  let x = a.length;
  let y = b.length;
  for (; edits >= 0; edits--) {
    const reach = trace[edits];
    const diagonal = x - y;
    const down = diagonal === -edits || (diagonal !== edits && reach.get(diagonal - 1) < reach.get(diagonal + 1));
    const before = down ? diagonal + 1 : diagonal - 1;
    const beforeX = edits ? reach.get(before) : 0;
    const beforeY = edits ? beforeX - before : 0;
    while (x > beforeX && y > beforeY) result.push(["=", a[--x]]), y--;
    if (edits) result.push(down ? ["+", b[--y]] : ["-", a[--x]]);
  }
  return result.reverse();
}

// "big dog" to "small cat" is one change, not two with a space left in between.
function withoutIslands(parts) {
  return parts.flatMap((part, i) => {
    const isIsland = part[0] === "=" && /^[^\S\n]+$/.test(part[1]) && i > 0 && i < parts.length - 1;
    return isIsland ? [["-", part[1]], ["+", part[1]]] : [part];
  });
}

// Neighbours of a kind become one, removals before additions.
function joined(parts) {
  const result = [];
  let removed = "";
  let added = "";
  const flush = () => {
    if (removed) result.push(["-", removed]);
    if (added) result.push(["+", added]);
    removed = added = "";
  };
  for (const [kind, text] of parts) {
    if (kind === "-") removed += text;
    else if (kind === "+") added += text;
    else if (text) {
      flush();
      if (result.length && result.at(-1)[0] === "=") result.at(-1)[1] += text;
      else result.push(["=", text]);
    }
  }
  flush();
  return result;
}
