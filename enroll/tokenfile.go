package enroll

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// tokenTimeout is how long whoever writes a token to a pipe has for it.
const tokenTimeout = 10 * time.Second

// ReadTokenFile reads an enrollment token from a file, or from standard input where the path is "-". A file that every
// user can read is refused: its token is no secret any more.
func ReadTokenFile(path string, stdin io.Reader) (Token, error) {
	if path == "-" {
		return readToken(stdin)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO need not have a writer
	if err != nil {
		return Token{}, fmt.Errorf("enroll: read the token: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return Token{}, fmt.Errorf("enroll: read the token: %w", err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		return Token{}, fmt.Errorf("enroll: every user can read %s: make a new token, and keep it with mode 0600", path)
	}
	if err := f.SetReadDeadline(time.Now().Add(tokenTimeout)); err != nil && !errors.Is(err, os.ErrNoDeadline) {
		return Token{}, fmt.Errorf("enroll: read the token: %w", err)
	}
	return readToken(f)
}

// readToken reads the text of a token to the end.
func readToken(r io.Reader) (Token, error) {
	text, err := io.ReadAll(io.LimitReader(r, 2*MaxTokenText))
	if err != nil {
		return Token{}, fmt.Errorf("enroll: read the token: %w", err)
	}
	return ParseToken(string(text))
}
