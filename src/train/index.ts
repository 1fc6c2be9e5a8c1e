/** nabla/train: fitting, evaluating and predicting; callbacks; metrics; the log and the checkpoints of a run. */
export {
  CallbackError,
  checkpointToResume,
  type EarlyStoppingOptions,
  earlyStopping,
  logMetrics,
  type ProgressOptions,
  progress,
  type SaveCheckpointsOptions,
  saveCheckpoints,
} from "./callbacks.ts";
export { type Checkpoint, CheckpointError, latestCheckpoint } from "./checkpoint-folder.ts";
export {
  accuracyMetric,
  type Batches,
  type BatchLoss,
  EvaluateError,
  type EvaluateOptions,
  evaluate,
  type Loss,
  type Metric,
  type Precision,
  predict,
} from "./evaluate.ts";
export {
  type Callback,
  DivergedError,
  FitError,
  type FitOptimizer,
  type FitOptions,
  type FitResult,
  type FitScheduler,
  fit,
  type StepRecord,
  type TrainingRun,
} from "./fit.ts";
export {
  accuracy,
  type ClassificationReport,
  type ConfusionMatrix,
  classificationReport,
  confusionMatrix,
  topKAccuracy,
} from "./metrics.ts";
export { TrigramModel, trigramLoss } from "./ngram.ts";
export { type LogEntry, RunLog, readRunLog } from "./run-log.ts";
export { StateError } from "./state.ts";
export { formatConfusionMatrix, LiveLine, lossChart } from "./terminal.ts";
