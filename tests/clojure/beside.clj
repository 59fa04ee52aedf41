(ns beside
  "Proletarian's own code on one side of a pipe: a request is an EDN vector on a line, and so is the answer.
   Arguments: JDBC URL, user, password."
  (:require [clojure.edn :as edn]
            [proletarian.job :as job]
            [proletarian.job-id-strategies :as ids]
            [proletarian.protocols :as p]
            [proletarian.transit :as transit]
            [proletarian.worker :as worker])
  (:import (java.time Clock Instant)
           (org.postgresql.ds PGSimpleDataSource)))

(def serializer (transit/create-serializer))

(def data-source
  (let [[url user password] *command-line-args*]
    (doto (PGSimpleDataSource.) (.setUrl url) (.setUser user) (.setPassword password))))

(def config
  {:proletarian.db/job-table "proletarian.job"
   :proletarian.db/archived-job-table "proletarian.archived_job"
   :proletarian.db/serializer serializer
   :proletarian.db/job-id-strategy (ids/->postgresql-uuid-strategy)
   :proletarian.retry/retry-strategy-fn (fn [_ _] {:retries 1 :delays []})
   :proletarian.retry/failed-job-fn (constantly nil)
   :proletarian.worker/clock (Clock/systemUTC)})

(defn enqueue [job-type payload]
  (with-open [conn (.getConnection data-source)]
    (job/enqueue! conn job-type payload)))

(defn work-one
  "What the handler saw, or nil when nothing was due; a payload with :fail fails."
  [queue]
  (let [seen (atom nil)]
    (worker/process-next-job! data-source queue
                              (fn [job-type payload]
                                (reset! seen [job-type (p/encode serializer payload)])
                                (when (and (map? payload) (:fail payload)) (throw (ex-info "no" {}))))
                              (fn [_ _])
                              config)
    @seen))

(def queue-worker (atom nil))
(def worked (atom []))

(defn start [queue]
  (reset! queue-worker
          (worker/create-queue-worker data-source (fn [_ payload] (swap! worked conj payload))
                                      {:proletarian/queue queue
                                       :proletarian/polling-interval-ms 20
                                       :proletarian/log (fn [_ _])}))
  (worker/start! @queue-worker))

(defn stop []
  (worker/stop! @queue-worker)
  @worked)

(defn answer [[verb & arguments]]
  (case verb
    :again (p/encode serializer (p/decode serializer (first arguments)))
    :write (p/encode serializer (first arguments))
    :keyword (let [read (edn/read-string (first arguments))] (when (keyword? read) (str read)))
    :enqueue (str (apply enqueue arguments))
    :work-one (apply work-one arguments)
    :start (apply start arguments)
    :stop (stop)))

(loop []
  (when-let [line (read-line)]
    (prn (try [:answer (answer (edn/read-string {:readers {'instant #(Instant/parse %)}} line))]
              (catch Throwable e [:error (str e)])))
    (flush)
    (recur)))
(shutdown-agents)
