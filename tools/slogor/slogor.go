// Package slogor stands in for gitlab.com/greyxor/slogor, which the Go module proxy does not serve. lego needs it for the
// default format of its log alone. This one logs as [slog.TextHandler] does, without colors.
package slogor

import (
	"io"
	"log/slog"
)

// OptionFn changes the options of a handler.
type OptionFn func(*slog.HandlerOptions)

// SetLevel sets the lowest level that is logged.
func SetLevel(level slog.Leveler) OptionFn {
	return func(o *slog.HandlerOptions) { o.Level = level }
}

// SetTimeFormat changes nothing: a TextHandler has one format for times.
func SetTimeFormat(string) OptionFn { return func(*slog.HandlerOptions) {} }

// DisableColor changes nothing: a TextHandler has no colors.
func DisableColor() OptionFn { return func(*slog.HandlerOptions) {} }

// NewHandler returns a handler that writes to w.
func NewHandler(w io.Writer, options ...OptionFn) slog.Handler {
	var o slog.HandlerOptions
	for _, option := range options {
		option(&o)
	}
	return slog.NewTextHandler(w, &o)
}
