package outcome

import (
	"io"
	"net/http"
)

// StatusWriter records the status of an HTTP response. Status is the one that applies if the handler sets none.
type StatusWriter struct {
	http.ResponseWriter
	Status int
}

// WriteHeader implements [http.ResponseWriter].
func (w *StatusWriter) WriteHeader(status int) {
	w.Status = status
	w.ResponseWriter.WriteHeader(status)
}

// WriteString implements [io.StringWriter], like the underlying writer.
func (w *StatusWriter) WriteString(text string) (int, error) {
	return io.WriteString(w.ResponseWriter, text)
}

// Unwrap returns the underlying writer, for [http.ResponseController].
func (w *StatusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
