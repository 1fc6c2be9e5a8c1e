/**
 * Every rule, gathered: importing this file fills the table. A row of `graph/` without an entry in one of these files
 * fails a test; `null` is an entry.
 */
import "./rules/composites.ts";
import "./rules/elementwise.ts";
import "./rules/indexed.ts";
import "./rules/loop.ts";
import "./rules/movement.ts";
import "./rules/reduction.ts";

export { gradients, type Rule, setGradient } from "./table.ts";
