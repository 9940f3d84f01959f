package service

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// OnHangup calls reload at each SIGHUP, one call after the other, until ctx ends. A SIGHUP that came before is not lost where
// Hangups was called before.
func OnHangup(ctx context.Context, hangups <-chan os.Signal, reload func()) {
	go func() {
		for {
			select {
			case <-hangups:
				reload()
			case <-ctx.Done():
				return
			}
		}
	}()
}

// Hangups returns a channel of SIGHUP, which does not end the process any more.
func Hangups() <-chan os.Signal {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	return hangups
}
