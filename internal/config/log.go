package config

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// LogFormat is the format of log records.
type LogFormat string

// The formats.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// UnmarshalText reads text or json.
func (f *LogFormat) UnmarshalText(text []byte) error {
	switch name := LogFormat(text); name {
	case LogText, LogJSON:
		*f = name
		return nil
	default:
		return fmt.Errorf("%q is not a format: use text or json", text)
	}
}

// Logger returns a logger that writes records of level least and above to w.
func (f LogFormat) Logger(w io.Writer, least slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: least}
	if f == LogJSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// LogLevel is one of slog's four named levels. The zero value is info.
type LogLevel slog.Level

// UnmarshalText reads debug, info, warn or error.
func (l *LogLevel) UnmarshalText(text []byte) error {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if LogLevel(level).String() == string(text) {
			*l = LogLevel(level)
			return nil
		}
	}
	return fmt.Errorf("%q is not a level: use debug, info, warn or error", text)
}

// Level implements slog.Leveler.
func (l LogLevel) Level() slog.Level { return slog.Level(l) }

// String returns the name that UnmarshalText reads.
func (l LogLevel) String() string { return strings.ToLower(slog.Level(l).String()) }
