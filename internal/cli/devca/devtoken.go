package devca

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/brevet-pki/brevet/internal/cli/file"
)

// SoftHSM (2.6.1) rewrites a token's file token.object in place at every login. If the process is killed during that,
// the file is empty, and the token is lost with all its keys. After a development CA has been created the content no
// longer changes, so a copy is kept beside the token.

func tokenObject(dir string) (string, error) {
	tokens := filepath.Join(dir, "softhsm", "tokens")
	found, err := os.ReadDir(tokens)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%s holds %d tokens where there should be one: start with another --directory", tokens, len(found))
	}
	return filepath.Join(tokens, found[0].Name(), "token.object"), nil
}

func tokenCopy(dir string) string { return filepath.Join(dir, "token.object") }

// keepToken makes the copy, before the token is in use.
func keepToken(dir string) error {
	path, err := tokenObject(dir)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return file.WriteNew(tokenCopy(dir), content, 0o600)
}

// mendToken restores the file from the copy if a killed process has truncated it.
// mendToken brings the copy back where a killed process left less than that.
func mendToken(dir string) error {
	kept, err := os.ReadFile(tokenCopy(dir))
	if err != nil {
		return err
	}
	path, err := tokenObject(dir)
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err != nil || info.Size() >= int64(len(kept)) {
		return err
	}
	mended := path + ".mended"
	if err := os.Remove(mended); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := file.WriteNew(mended, kept, 0o600); err != nil {
		return err
	}
	return os.Rename(mended, path)
}
