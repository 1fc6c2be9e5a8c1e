/**
 * In which line a chat template fails. The template engine does not say: a template that can't be read is tried tag by tag, and one
 * that fails is rendered once more with marks before its tags. Neither costs anything where all goes well.
 */

/** A tag of a template, "{{ … }}" or "{% … %}", where it stands. */
export interface Tag {
  readonly text: string;
  readonly start: number;
  /** From 1 on. */
  readonly line: number;
  readonly isStatement: boolean;
  /** The first word of a statement: "if", "for", "endfor". */
  readonly keyword: string;
}

/** The end of the tag that begins at `start`; texts in quotes are no ends. */
function endOf(template: string, start: number): number {
  const closing = template[start + 1] === "%" ? "%}" : "}}";
  let quote = "";
  let depth = 0;
  for (let i = start + 2; i < template.length; i++) {
    const c = template[i];
    if (quote !== "") {
      if (c === "\\") i++;
      else if (c === quote) quote = "";
    } else if (c === '"' || c === "'") quote = c;
    else if (template.startsWith(closing, i) && depth === 0) return i + 2;
    else if (c === "{") depth++;
    else if (c === "}") depth--;
  }
  return template.length;
}

/** The tags of a template in order, without comments. */
export function tagsOf(template: string): Tag[] {
  const out: Tag[] = [];
  const opening = /\{[{%#]/g;
  let line = 1;
  let counted = 0;
  for (let match = opening.exec(template); match !== null; match = opening.exec(template)) {
    const start = match.index;
    for (; counted < start; counted++) if (template[counted] === "\n") line++;
    if (match[0] === "{#") {
      const end = template.indexOf("#}", start);
      opening.lastIndex = end < 0 ? template.length : end + 2;
      continue;
    }
    const end = endOf(template, start);
    const text = template.slice(start, end);
    const isStatement = match[0] === "{%";
    out.push({ text, start, line, isStatement, keyword: isStatement ? (/[a-z]+/.exec(text)?.[0] ?? "") : "" });
    opening.lastIndex = end;
  }
  return out;
}

/** The template with a mark before each tag: a call of `name` with the tag's number, which writes nothing. */
export function marked(template: string, name: string): string {
  let out = "";
  let at = 0;
  tagsOf(template).forEach(({ text, start, isStatement }, i) => {
    const dash = text[2] === "-" ? "-" : "";
    out += template.slice(at, start);
    out += isStatement ? `{%${dash} set ${name}_ = ${name}(${i}) %}` : `{{${dash} ${name}(${i}) }}`;
    at = start;
  });
  return out + template.slice(at);
}

const ends: Readonly<Record<string, string>> = {
  if: "endif",
  for: "endfor",
  macro: "endmacro",
  call: "endcall",
  filter: "endfilter",
};
const opener: Readonly<Record<string, string>> = Object.fromEntries(
  Object.entries({ ...ends, set: "endset" }).map(([from, to]) => [to, from]),
);

/** A statement alone, with what it needs to be whole. */
function whole({ text, keyword }: Tag): string | null {
  if (keyword in opener || keyword === "generation" || keyword === "endgeneration") return null;
  if (keyword === "elif") return `{% if 1 %}${text}{% endif %}`;
  if (keyword === "else") return `{% if 1 %}${text}{% endif %}`;
  if (keyword === "break" || keyword === "continue") return `{% for i in [] %}${text}{% endfor %}`;
  if (keyword === "set" && !/[^=!<>]=[^=]/.test(text)) return `${text}{% endset %}`;
  return keyword in ends ? `${text}{% ${ends[keyword]} %}` : text;
}

/** The first tag that can't be read, alone or for what is open around it; undefined where none is found. `reads` tries a template. */
export function unreadableTag(template: string, reads: (template: string) => boolean): Tag | undefined {
  const open: Tag[] = [];
  for (const tag of tagsOf(template)) {
    if (!tag.isStatement) {
      if (!reads(tag.text)) return tag;
      continue;
    }
    if (tag.keyword in opener) {
      if (open.pop()?.keyword !== opener[tag.keyword]) return tag;
      continue;
    }
    const alone = whole(tag);
    if (alone !== null && !reads(alone)) return tag;
    if (tag.keyword in ends || (tag.keyword === "set" && alone?.endsWith("{% endset %}"))) open.push(tag);
  }
  return open.at(-1);
}
