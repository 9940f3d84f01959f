package enroll

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// sourcePoll is how soon a Source notices a new credential.
const sourcePoll = time.Second

// Source gives a program the credential that an agent keeps in a directory. It only reads.
type Source struct {
	holder
	path string
	log  *slog.Logger
}

// OpenSource reads the credential in a directory; ErrNoCredential where there is none yet.
func OpenSource(path string, log *slog.Logger) (*Source, error) {
	s := &Source{path: path, log: log}
	p, err := ReadPair(path)
	if err != nil {
		return nil, err
	}
	s.pair.Store(p)
	return s, nil
}

// Run follows the directory until the context ends, and calls changed, which may be nil, with each new pair. A pair
// that does not load is logged, and the one before it stays in use.
func (s *Source) Run(ctx context.Context, changed func(*Pair)) {
	ticker := time.NewTicker(sourcePoll)
	defer ticker.Stop()
	var seen, complained string
	for {
		name, err := os.Readlink(filepath.Join(s.path, currentName))
		if err == nil && name != seen {
			var p *Pair
			if p, err = ReadPair(s.path); err == nil {
				seen = name
				s.use(p, changed)
			}
		}
		if err != nil && complained != err.Error() {
			s.log.Error("the credential is not readable; the one before it stays in use", "error", fmt.Sprint(err))
			complained = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (s *Source) use(p *Pair, changed func(*Pair)) {
	if p.Certificate.Equal(s.Pair().Certificate) {
		return
	}
	s.pair.Store(p)
	if changed != nil {
		changed(p)
	}
}
