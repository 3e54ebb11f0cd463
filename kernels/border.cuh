// Pixels at the border of an image of at least 2x2 pixels: where some taps of a 3x3 kernel meet no pixel.
#pragma once

// Top left, top, top right, left, right, bottom left, bottom, bottom right.
constexpr int BORDER_KINDS = 8;

// Where a kind is among the nine places of an image, row by row, whose fifth is no border.
__device__ __forceinline__ int border_place(int kind) { return kind < 4 ? kind : kind + 1; }

// The kind of a pixel; below 0 if it is not at the border.
__device__ __forceinline__ int border_kind(int y, int x, int height, int width) {
  const int row = y == 0 ? 0 : y == height - 1 ? 2 : 1, column = x == 0 ? 0 : x == width - 1 ? 2 : 1;
  const int place = 3 * row + column;
  return place == 4 ? -1 : place > 4 ? place - 1 : place;
}

// Whether a tap of a 3x3 kernel, counted row by row, meets no pixel at those of a kind.
__device__ __forceinline__ bool is_missed(int kind, int tap) {
  const int place = border_place(kind);
  const bool row = place / 3 != 1 && place / 3 == tap / 3, column = place % 3 != 1 && place % 3 == tap % 3;
  return row || column;
}
