package service

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// OnHangup calls reload after each SIGHUP, one call at a time, until ctx ends. If Hangups was called earlier, a SIGHUP
// between the two calls also counts.
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

// Hangups returns a channel that receives SIGHUP. From then on, SIGHUP does not end the process.
func Hangups() <-chan os.Signal {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	return hangups
}
