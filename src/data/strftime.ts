/** Dates as Python's strftime writes them in the C locale, which is what chat templates expect of strftime_now. */
const days = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const months = [
  ...["January", "February", "March", "April", "May", "June"],
  ...["July", "August", "September", "October", "November", "December"],
];

const pad = (n: number, width = 2, by = "0"): string => String(n).padStart(width, by);
const twelve = (date: Date): number => date.getHours() % 12 || 12;
const dayOfYear = (date: Date): number =>
  Math.round(
    (Date.UTC(date.getFullYear(), date.getMonth(), date.getDate()) - Date.UTC(date.getFullYear(), 0, 1)) / 864e5,
  ) + 1;

const fields: Readonly<Record<string, (date: Date) => string>> = {
  a: (d) => days[d.getDay()].slice(0, 3),
  A: (d) => days[d.getDay()],
  b: (d) => months[d.getMonth()].slice(0, 3),
  h: (d) => months[d.getMonth()].slice(0, 3),
  B: (d) => months[d.getMonth()],
  d: (d) => pad(d.getDate()),
  e: (d) => pad(d.getDate(), 2, " "),
  H: (d) => pad(d.getHours()),
  I: (d) => pad(twelve(d)),
  j: (d) => pad(dayOfYear(d), 3),
  m: (d) => pad(d.getMonth() + 1),
  M: (d) => pad(d.getMinutes()),
  p: (d) => (d.getHours() < 12 ? "AM" : "PM"),
  S: (d) => pad(d.getSeconds()),
  f: (d) => pad(d.getMilliseconds() * 1000, 6),
  u: (d) => String(d.getDay() || 7),
  w: (d) => String(d.getDay()),
  y: (d) => pad(d.getFullYear() % 100),
  Y: (d) => String(d.getFullYear()),
  D: (d) => strftime(d, "%m/%d/%y"),
  F: (d) => strftime(d, "%Y-%m-%d"),
  T: (d) => strftime(d, "%H:%M:%S"),
  R: (d) => strftime(d, "%H:%M"),
  x: (d) => strftime(d, "%m/%d/%y"),
  X: (d) => strftime(d, "%H:%M:%S"),
  c: (d) => strftime(d, "%a %b %e %H:%M:%S %Y"),
  n: () => "\n",
  t: () => "\t",
  "%": () => "%",
};

/** `date` in the machine's time zone. With "-" a number has no zeros before it, as in glibc; what is not known stays as it is. */
export function strftime(date: Date, format: string): string {
  return format.replace(/%(-?)([a-zA-Z%])/g, (whole, dash: string, letter: string) => {
    if (!Object.hasOwn(fields, letter)) return whole;
    const text = fields[letter](date);
    return dash === "" ? text : text.replace(/^[0 ]+(?=\d)/, "");
  });
}
