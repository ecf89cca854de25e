// The sample browser: all samples in a list that draws only what is in sight, filters, and differences between answers.
// Samples come from script files in report-data/, which are loaded when they are needed (see store.py). What models wrote
// becomes text nodes only, and never markup.
const zero2r1 = (() => {
  const ROW = 58; // height of a row of the list, CSS pixels; page.css says the same
  const SPARE = 6; // rows drawn above and below what is in sight
  const MOST_WORDS = 4000; // of each text in a difference
  const FILTERS = ["text", "stage", "model", "status", "task", "step", "order"];
  const wanted = {}; // their values, which outlive the section when it is shown anew
  const waiting = new Map(); // "index" or the number of a part -> what to call with its content
  const policy = window.trustedTypes?.createPolicy("zero2r1", { createScriptURL: (name) => name });
  let data = null;
  let texts = [];
  let folded = []; // the texts of each sample in lower case, for the search
  let shown = new Int32Array(0);
  let chosen = -1;
  let loading = null;

  const at = (name) => document.getElementById(`browse-${name}`);
  const soon = (work) => {
    let pending = false;
    return () => {
      if (pending) return;
      pending = true;
      requestAnimationFrame(() => {
        pending = false;
        work();
      });
    };
  };
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const load = (name, key) =>
    new Promise((resolve, reject) => {
      const file = `report-data/${name}`;
      const script = document.createElement("script");
      waiting.set(key, resolve);
      script.onerror = () => reject(new Error(`${file} is not there: keep the folder beside the page, or reload it`));
      script.onload = () => script.remove();
      script.src = policy ? policy.createScriptURL(file) : file;
      document.head.append(script);
    });
  const arrived = (key, content) => {
    waiting.get(key)?.(content);
    waiting.delete(key);
  };

  const partOf = (sample) => {
    let part = data.starts.length - 1;
    while (data.starts[part] > sample) part -= 1;
    return part;
  };
  const textsOf = async (part) => {
    if (!texts[part]) {
      texts[part] = await load(data.parts[part], part);
      texts[part].forEach(([thought, answer, extracted], index) => {
        const sample = data.starts[part] + index;
        folded[sample] = `${data.questions[data.columns.problem[sample]]}\n${thought ?? ""}\n${answer}\n${extracted}`.toLowerCase();
      });
    }
    return texts[part];
  };
  const textOf = async (sample) => (await textsOf(partOf(sample)))[sample - data.starts[partOf(sample)]];

  const sourceName = (source) => {
    const [run, stage, model] = data.sources[source];
    return [run, model || stage].filter(Boolean).join(" · ");
  };
  const stageName = (source) => data.sources[source].slice(0, 2).filter(Boolean).join(" · ");
  const title = (sample) => {
    const step = data.columns.step[sample];
    return sourceName(data.columns.source[sample]) + (step === null ? "" : ` · step ${step}`);
  };
  const facts = (sample) => {
    const { tokens, end } = data.columns;
    return [
      tokens[sample] === null ? "" : `${tokens[sample].toLocaleString("en")} tokens`,
      data.ends[end[sample]] ? `ended by ${data.ends[end[sample]]}` : "",
    ].filter(Boolean).join(" · ");
  };

  // Filters

  const fill = (name, entries) => {
    const select = at(name);
    const before = wanted[name] ?? "";
    select.replaceChildren(...entries.map(([value, label]) => Object.assign(make("option", "", label), { value })));
    select.value = entries.some(([value]) => value === before) ? before : "";
  };
  const counted = (column) => {
    const counts = new Map();
    for (const value of column) counts.set(value, (counts.get(value) ?? 0) + 1);
    return counts;
  };
  const choices = () => {
    const { source, status, problem } = data.columns;
    const labels = (all, number, label) =>
      [["", all], ...[...counted(number)].map(([value, n]) => [String(value), `${label(value)} (${n.toLocaleString("en")})`])];
    const stages = [...new Set(data.sources.map((_, index) => stageName(index)))];
    const models = [...new Set(data.sources.filter(([, , model]) => model).map((_, index) => index))];
    fill("stage", [["", "all stages"], ...stages.map((name) => [name, name])]);
    fill("model", [["", "all models"], ...[...new Set(data.sources.filter((s) => s[2]).map((s) => s[2]))].map((name) => [name, name])]);
    fill("status", [["", "all verdicts"], ["right", "right"], ["not right", "not right"],
      ...labels("", status, (value) => data.statuses[value] || "none").slice(1)]);
    fill("task", [["", "all tasks"], ...[...new Set(data.problems.map(([task]) => task))].map((task) => [task, task])]);
    at("model").hidden = models.length === 0;
    steps();
  };
  const steps = () => {
    const stage = at("stage").value;
    const { source, step } = data.columns;
    const found = new Set();
    for (let sample = 0; sample < step.length; sample += 1) {
      if (step[sample] !== null && (!stage || data.stageNames[source[sample]] === stage)) found.add(step[sample]);
    }
    wanted.step = at("step").value || wanted.step;
    fill("step", [["", "all steps"], ...[...found].sort((a, b) => a - b).map((value) => [String(value), `step ${value}`])]);
    at("step").hidden = found.size === 0;
  };

  const accepted = () => {
    const [stage, model, status, task, step] = ["stage", "model", "status", "task", "step"].map((name) => at(name).value);
    const { columns } = data;
    const set = (values, wanted) => values.map((value) => !wanted || value === wanted);
    const stageOk = set(data.stageNames, stage);
    const modelOk = set(data.sources.map((source) => source[2]), model);
    const taskOk = set(data.problems.map((problem) => problem[0]), task);
    const verdict = ["right", "not right"].indexOf(status);
    const number = verdict < 0 && status ? Number(status) : -1;
    return (sample) =>
      stageOk[columns.source[sample]] && modelOk[columns.source[sample]] && taskOk[columns.problem[sample]] &&
      (!step || columns.step[sample] === Number(step)) &&
      (verdict < 0 || columns.good[sample] === 1 - verdict) && (number < 0 || columns.status[sample] === number);
  };

  const filter = () => {
    const started = performance.now();
    for (const name of FILTERS) wanted[name] = at(name).value;
    const words = at("text").value.toLowerCase();
    const fits = accepted();
    const found = new Int32Array(data.columns.source.length);
    let count = 0;
    for (let sample = 0; sample < found.length; sample += 1) {
      if (fits(sample) && (!words || folded[sample].includes(words))) found[count++] = sample;
    }
    shown = found.slice(0, count);
    order();
    at("count").textContent = `${count.toLocaleString("en")} of ${found.length.toLocaleString("en")} samples`;
    at("list").scrollTop = 0;
    at("space").style.height = `${count * ROW}px`;
    draw();
    at("none").hidden = count > 0;
    at("list").dataset.milliseconds = String(performance.now() - started);
  };
  const order = () => {
    const by = at("order").value;
    const { tokens } = data.columns;
    if (by) shown.sort((a, b) => (by === "longest" ? 1 : -1) * ((tokens[b] ?? -1) - (tokens[a] ?? -1)) || a - b);
  };
  const search = async () => {
    const missing = data.parts.map((_, part) => part).filter((part) => !texts[part]);
    for (const part of at("text").value ? missing : []) {
      at("count").textContent = `reading part ${part + 1} of ${data.parts.length} …`;
      await textsOf(part);
    }
    filter();
  };

  // The list

  const draw = () => {
    const list = at("list");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    const rows = [];
    for (let place = first; place < last; place += 1) rows.push(row(shown[place], place));
    at("space").replaceChildren(...rows);
  };
  const row = (sample, place) => {
    const good = data.columns.good[sample] === 1;
    const line = make("button", `row ${good ? "good" : "bad"}`);
    line.type = "button";
    line.style.top = `${place * ROW}px`;
    line.dataset.sample = sample;
    line.setAttribute("aria-pressed", String(sample === chosen));
    const head = make("span", "line");
    head.append(make("b", "mark", good ? "✓" : "✗"), make("bdi", "what", data.heads[data.columns.problem[sample]] || "(no question)"));
    line.append(head, make("small", "", [title(sample), data.statuses[data.columns.status[sample]], facts(sample).split(" · ")[0]].filter(Boolean).join(" · ")));
    return line;
  };
  const move = (by) => {
    const place = Math.min(shown.length - 1, Math.max(0, shown.indexOf(chosen) + by));
    const list = at("list");
    if (shown.length === 0) return;
    if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
    if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
    choose(shown[place]);
  };

  // One sample

  const block = (name, text, className) => {
    const part = make("div", className);
    part.dir = "auto";
    part.append(make("span", "tag", name), text || "(empty)");
    return part;
  };
  const choose = async (sample, against = -1) => {
    chosen = sample;
    draw();
    const [thought, answer, extracted, rewards, language] = await textOf(sample);
    if (chosen !== sample) return;
    const [task, id, question, gold] = data.problems[data.columns.problem[sample]];
    const good = data.columns.good[sample] === 1;
    const detail = make("div", `sample ${good ? "good" : "bad"}`);
    const head = make("header");
    head.append(make("b", "model", title(sample)), make("span", "badge verdict", data.statuses[data.columns.status[sample]] || "no verdict"),
      make("small", "", [task, id, facts(sample), language && `language ${language}`].filter(Boolean).join(" · ")));
    detail.append(head, block("question", question, "asked"));
    if (thought !== null) detail.append(block("thought", thought, "thought"));
    detail.append(block(thought === null ? "no thought" : "answer", answer, "answer"));
    const read = make("p", "extracted");
    if (extracted) read.append("read as ", make("bdi", "", extracted), " ");
    if (gold) read.append("right answer ", make("bdi", "", gold));
    detail.append(read);
    const parts = Object.entries(rewards);
    if (parts.length) {
      const list = make("dl", "rewards");
      for (const [name, score] of parts) list.append(make("dt", "", name), make("dd", "", score === null ? "none" : String(Math.round(score * 1000) / 1000)));
      detail.append(list);
    }
    const others = [];
    data.columns.problem.forEach((problem, other) => {
      if (problem === data.columns.problem[sample] && other !== sample) others.push(other);
    });
    if (others.length) detail.append(alike(sample, others, against));
    at("detail").replaceChildren(detail);
    if (against >= 0) detail.append(await difference(against, sample));
    if (matchMedia("(max-width: 46rem)").matches && document.activeElement?.classList.contains("row")) detail.scrollIntoView({ block: "start" });
  };
  const alike = (sample, others, against) => {
    const part = make("div", "alike");
    const label = make("label", "", "Compare with the same problem by ");
    const select = make("select");
    select.id = "browse-against";
    select.append(Object.assign(make("option", "", "…"), { value: "-1" }));
    for (const other of others) {
      const mark = data.columns.good[other] === 1 ? "✓" : "✗";
      select.append(Object.assign(make("option", "", `${title(other)} ${mark}`), { value: String(other) }));
    }
    select.value = String(against);
    select.addEventListener("change", () => choose(sample, Number(select.value)));
    label.append(select);
    part.append(label);
    return part;
  };

  // Differences, word by word: the longest common subsequence of what lies between common beginnings and ends.

  const whole = ([thought, answer]) => (thought === null ? answer : `${thought}\n\n${answer}`);
  const words = (text) => text.match(/\s+|[^\s\p{L}\p{N}]|[\p{L}\p{N}]+/gu) ?? [];
  const compare = (before, after) => {
    let start = 0;
    while (start < before.length && start < after.length && before[start] === after[start]) start += 1;
    let end = 0;
    while (end < before.length - start && end < after.length - start && before.at(-1 - end) === after.at(-1 - end)) end += 1;
    const a = before.slice(start, before.length - end);
    const b = after.slice(start, after.length - end);
    const width = b.length + 1;
    const longest = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i -= 1) {
      for (let j = b.length - 1; j >= 0; j -= 1) {
        longest[i * width + j] = a[i] === b[j] ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
      }
    }
    const pieces = before.slice(0, start).map((word) => ["", word]);
    let [i, j] = [0, 0];
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) {
        pieces.push(["", a[i]]);
        i += 1;
        j += 1;
      } else if (j === b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) pieces.push(["del", a[i++]]);
      else pieces.push(["ins", b[j++]]);
    }
    return [...pieces, ...after.slice(after.length - end).map((word) => ["", word])];
  };
  const difference = async (before, after) => {
    const [old, now] = [whole(await textOf(before)), whole(await textOf(after))];
    const part = make("div", "difference");
    part.dir = "auto";
    const tag = make("span", "tag", "difference: ");
    tag.append(make("del", "", `only the other, ${title(before)}`), " ", make("ins", "", "only this one"));
    part.append(tag);
    let last = null;
    for (const [kind, word] of compare(words(old).slice(0, MOST_WORDS), words(now).slice(0, MOST_WORDS))) {
      if (last && last.kind === kind) last.node.append(word);
      else {
        last = { kind, node: make(kind || "span", "", word) };
        part.append(last.node);
      }
    }
    const longest = Math.max(words(old).length, words(now).length);
    if (longest > MOST_WORDS) part.append(make("span", "tag", `the first ${MOST_WORDS.toLocaleString("en")} words and spaces`));
    return part;
  };

  // Begin: when the section comes into sight

  const start = async (section) => {
    try {
      data = await load(section.dataset.index, "index");
    } catch (error) {
      at("count").textContent = error.message;
      return;
    }
    texts = [];
    folded = [];
    chosen = -1;
    data.stageNames = data.sources.map((_, index) => stageName(index));
    data.questions = data.problems.map(([, , question]) => question);
    data.heads = data.questions.map((question) => question.slice(0, 160).replace(/\s+/g, " "));
    choices();
    at("controls").disabled = false;
    await search();
    section.dataset.ready = section.dataset.index;
  };
  const open = () => {
    const section = document.getElementById("browse");
    if (!section || loading === section.dataset.index) return;
    loading = section.dataset.index;
    at("text").value = wanted.text ?? "";
    at("order").value = wanted.order ?? "";
    at("text").addEventListener("input", soon(search));
    for (const name of ["model", "status", "task", "step", "order"]) at(name).addEventListener("change", search);
    at("stage").addEventListener("change", () => {
      steps();
      search();
    });
    at("list").addEventListener("scroll", soon(draw));
    at("list").addEventListener("click", (event) => {
      const line = event.target.closest(".row");
      if (line) choose(Number(line.dataset.sample));
    });
    at("list").addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (by) {
        event.preventDefault();
        move(by);
      }
    });
    new IntersectionObserver((entries, observer) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        observer.disconnect();
        start(section);
      }
    }, { rootMargin: "600px" }).observe(section);
  };
  addEventListener("DOMContentLoaded", open);
  return { index: (content) => arrived("index", content), texts: (part, content) => arrived(part, content), open, compare };
})();
