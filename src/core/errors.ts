/**
 * Every error that Nabla throws on purpose. A message says what was wrong, where, what was expected and what to do;
 * the class says which kind, so that a program can react and the command line can choose its exit code.
 */

export class NablaError extends Error {
  override name = "NablaError";
}

/** Sizes or axes that do not fit an operation. */
export class ShapeError extends NablaError {
  override name = "ShapeError";
}

/** A dtype that an operation does not take, or a value that a dtype can't hold. */
export class DTypeError extends NablaError {
  override name = "DTypeError";
}

/** An index or label outside its range; found at run time, before any state was written. */
export class IndexError extends NablaError {
  override name = "IndexError";
}

/** A value of an earlier version of some state was asked for after that state had been overwritten. */
export class StaleReadError extends NablaError {
  override name = "StaleReadError";
}

/** A gradient that can't be computed: no graph, a freed graph, an operation without a gradient. */
export class AutogradError extends NablaError {
  override name = "AutogradError";
}

/** NaN or infinity where anomaly detection looked for it. */
export class AnomalyError extends NablaError {
  override name = "AnomalyError";
}

/** A backend that is not here, or an operation that it can't run. */
export class BackendError extends NablaError {
  override name = "BackendError";
}
