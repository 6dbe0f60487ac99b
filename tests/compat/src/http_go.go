// serve FILE PORT | get URL TIMES AT_ONCE SHA256: one connection for each request.
package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
)

func serve(file, port string) {
	http.HandleFunc("/blob", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	server := &http.Server{Addr: ":" + port}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	over := make(chan struct{})
	go func() {
		<-stop
		server.Shutdown(context.Background())
		close(over)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-over
}

func get(client *http.Client, url, want string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	digest := sha256.New()
	if _, err := io.Copy(digest, response.Body); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", digest.Sum(nil)); got != want {
		return fmt.Errorf("another digest")
	}
	return nil
}

func main() {
	if os.Args[1] == "serve" {
		serve(os.Args[2], os.Args[3])
		return
	}
	times, _ := strconv.Atoi(os.Args[3])
	atOnce, _ := strconv.Atoi(os.Args[4])
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	jobs := make(chan struct{}, times)
	for i := 0; i < times; i++ {
		jobs <- struct{}{}
	}
	close(jobs)
	var group sync.WaitGroup
	for i := 0; i < atOnce; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for range jobs {
				if err := get(client, os.Args[2], os.Args[5]); err != nil {
					log.Fatal(err)
				}
			}
		}()
	}
	group.Wait()
}
