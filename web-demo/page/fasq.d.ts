/** Where a model runs: WebGPU where there is a GPU behind it and the CPU otherwise, or one of them. */
export type Backend = "auto" | "wgpu" | "cpu";

export interface ModelInfo {
  /** What computes, for people. */
  backend: string;
  /** Bytes of the largest tensor slice that the adapter binds; undefined on the CPU. */
  maxBinding?: number;
  family: string;
  layers: number;
  /** Tokens that a text may have, prompt included. */
  context: number;
  /** Weights of the model. */
  parameters: number;
  /** Bytes of the file. */
  bytes: number;
  /** Why "auto" took the CPU; null where it did not. */
  fallback: string | null;
}

export interface GenerateOptions {
  /** Tokens to write at most; 256 if not given. */
  maxTokens?: number;
  /** 0 takes the likeliest token always. What is not given is the model's own recommendation. */
  temperature?: number;
  topP?: number;
  topK?: number;
  /** The same seed gives the same text; 0 if not given. */
  seed?: number;
  /** Texts that end the text. */
  stop?: string[];
  /** Ends the text when it aborts. */
  signal?: AbortSignal;
}

export interface Stats {
  promptTokens: number;
  /** From the start to the first token. */
  promptSeconds: number;
  generatedTokens: number;
  tokensPerSecond: number;
  /** Why the text ended. */
  reason?: string;
}

export class FasqModel {
  /** Loads a .fasq file. Throws an Error that says what is wrong with the file or the device. */
  static load(bytes: Uint8Array, options?: { backend?: Backend }): Promise<FasqModel>;
  readonly info: ModelInfo;
  /** Of the last text that ended by itself or was stopped; null before. */
  readonly stats: Stats | null;
  /** The text that follows `prompt`, piece by piece. Texts are written one after the other. */
  generate(prompt: string, options?: GenerateOptions): AsyncGenerator<string, void, void>;
  /** Gives the memory back. */
  free(): void;
}
