package enroll

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// tokenTimeout is how long ReadTokenFile waits for data if the file is a pipe.
const tokenTimeout = 10 * time.Second

// ReadTokenFile reads an enrollment token from a file, or from standard input if the path is "-". It refuses a file
// that every user can read, because its token may have been read by others.
func ReadTokenFile(path string, stdin io.Reader) (Token, error) {
	if path == "-" {
		return readToken(stdin)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // do not block on a FIFO without a writer
	if err != nil {
		return Token{}, fmt.Errorf("read the token: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return Token{}, fmt.Errorf("read the token: %w", err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		return Token{}, fmt.Errorf("every user can read %s: make a new token, and keep it with mode 0600", path)
	}
	if err := f.SetReadDeadline(time.Now().Add(tokenTimeout)); err != nil && !errors.Is(err, os.ErrNoDeadline) {
		return Token{}, fmt.Errorf("read the token: %w", err)
	}
	return readToken(f)
}

// readToken reads and parses the text of a token.
func readToken(r io.Reader) (Token, error) {
	text, err := io.ReadAll(io.LimitReader(r, 2*MaxTokenText))
	if err != nil {
		return Token{}, fmt.Errorf("read the token: %w", err)
	}
	return ParseToken(string(text))
}
